"""Commands on a tier-config document, before a server starts: check, replay."""
