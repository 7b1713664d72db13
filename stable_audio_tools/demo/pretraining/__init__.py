"""How the demo's tiny models were trained: one module per model, driven by ``demo.train_assets``."""
