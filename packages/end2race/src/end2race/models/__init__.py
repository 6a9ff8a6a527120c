"""The networks: LiDAR teacher, camera student, and the operations that they stand on."""
