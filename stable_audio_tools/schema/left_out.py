"""Types of the public package that are left out on purpose, each with the reason shown to the user.

A variant stays out where neither a public checkpoint nor a paper uses it; ``docs/models.md`` lists them too.
"""

_ADP = "the U-Nets of audio-diffusion-pytorch have no public checkpoint of this family"
_OWN_CLAP = "no such checkpoint is public; 'clap_text' and 'clap_audio' load the CLAP models that are"

LEFT_OUT = {
    "adp_1d": _ADP,
    "adp_cfg_1d": _ADP,
    "adp_uncond_1d": _ADP,
    "local_attn": "no public checkpoint has it; 'taae' has windowed attention",
    "pqmf": "no public checkpoint has it; 'wavelet' and 'patched' split audio too",
    "rvq_vae": "no public checkpoint has it; choose 'rvq' or 'vae'",
    "dac_rvq_vae": "no public checkpoint has it; choose 'dac_rvq' or 'vae'",
    "phoneme": "no public checkpoint has it; 'lut' embeds the tokens of any tokenizer",
    "causal_lm": "no public checkpoint has it; 't5' and 't5gemma' encode text",
    "source_mix": "no public checkpoint has it",
    "sat_clap_text": _OWN_CLAP,
    "sat_clap_audio": _OWN_CLAP,
    "x-transformers": "no public checkpoint has it; choose 'continuous_transformer'",
    "mamba": "no public checkpoint has it; choose 'continuous_transformer'",
    "musicgen": "audiocraft trains it; 'lm' is the language model of this package",
}
