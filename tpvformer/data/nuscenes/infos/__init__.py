"""Make, write and read info files, which list the files of each key frame and the calibration of its sensors."""
