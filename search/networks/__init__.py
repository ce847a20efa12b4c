"""Networks by name, as the libraries that ship them call them: `torchvision:resnet18`, `timm:convnext_atto`."""
