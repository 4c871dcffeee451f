"""Commands on the directory of an nvme tier: du, ls, rm, fsck."""
