"""INT8 by calibration: ranges, smoothing and learnt rounding, what stays in float, and the Q/DQ graph of it all."""
