"""POST in pure PyTorch: network, targets, losses, fusion, tracker and predictor."""
