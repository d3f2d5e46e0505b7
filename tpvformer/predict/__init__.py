"""From frames and weights to classes: the prediction of one moment, and the archives it is kept in."""
