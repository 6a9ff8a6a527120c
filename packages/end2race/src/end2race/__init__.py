"""From a LiDAR teacher to a camera student for racing."""
