"""Camera images: decoded, scaled, kept and normalised."""
