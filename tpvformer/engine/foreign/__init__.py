"""Run somebody's training script as it is, on today's packages and on the device that is here: ``tpvformer run``.

``preparations.py`` lists what a process gets before the script; ``script.py`` starts it.
"""
