"""What an arena promises: its snapshots survive crashes, damage, hostile memory and other processes."""
