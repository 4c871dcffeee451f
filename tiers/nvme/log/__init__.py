"""The log of segments: appending to it, reading from it, reclaiming its oldest part."""
