"""The policy: picture encoders, the flow transformer, its objective, and how actions are drawn."""
