"""Low-rank adapters: ``lora`` trains and merges them, ``reading`` reads every kind, ``attach`` puts them on."""
