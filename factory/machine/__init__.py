"""What this machine offers to a chain of tiers, and what stands in its way; each finding with its fix."""
