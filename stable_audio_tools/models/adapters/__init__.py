"""Low-rank adapters: ``lora`` makes and merges them, ``reading`` reads all kinds, ``attach`` puts them on."""
