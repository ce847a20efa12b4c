"""Where a study is kept: its folder and journal, and the stores of Optuna and MLflow that follow from them."""
