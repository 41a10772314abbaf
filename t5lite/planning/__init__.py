"""What a compiled program costs on devices that are not there: memory, FLOPs, network, time."""
