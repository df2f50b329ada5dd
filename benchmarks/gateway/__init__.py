"""What the gateway costs and withstands, beside other gateways in front of the same engine."""
