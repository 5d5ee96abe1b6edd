"""Geometry of point clouds: farthest points (`fps`), `neighbours`, `distances`, padded and packed (`layout`)."""
