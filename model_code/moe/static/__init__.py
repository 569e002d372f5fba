"""The model in a form whose shapes are known beforehand, for compilers: Neuron, XLA, torch.export."""
