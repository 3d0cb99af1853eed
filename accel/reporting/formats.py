"""The files that a result can be written to, by suffix."""

VIDEO_SUFFIXES = (".mp4", ".gif", ".png")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
