"""An adapter merged into its base, as a plain checkpoint: `lorry merge`."""
