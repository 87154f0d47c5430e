"""The methods that SoE is compared with: each file is one loss(model, x, y, settings)."""
