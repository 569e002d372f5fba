"""Multi-head latent attention: its store of latents, its server, a small model of its kind."""
