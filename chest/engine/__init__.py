"""The floor that sees memory, index and storage at once: how a value is set, spilled, loaded, saved and deleted."""
