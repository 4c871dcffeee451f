"""The pinned tier: slots in a page-locked arena of host memory."""
