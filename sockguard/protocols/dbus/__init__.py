"""D-Bus between a client and a message bus: its SASL phase, its messages and its match rules (specification 0.43)."""
