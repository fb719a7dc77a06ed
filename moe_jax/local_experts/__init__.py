"""Zero-computation experts: they stay on the token's own device."""
