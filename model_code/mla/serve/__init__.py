"""The server of the nodes with latent attention, which share what they computed of prompts."""
