"""How much of each layer goes: rules and solvers that spend a budget over the layers."""
