"""The log of segments: appends to it, reads from it, reclaims its oldest part."""
