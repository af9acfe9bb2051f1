"""Other libraries: an adapter for peft, plain checkpoints, ONNX and the Hub, and the way back; trackers, Trainer."""
