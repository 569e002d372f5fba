"""The model with shapes that are known beforehand, for compilers: Neuron, XLA, torch.export."""
