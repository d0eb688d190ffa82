"""Shapes of schedules, and ways to draw tokens."""
SCHEDULES = {"one token a step": {"block_length": 16}, "blocks of 4": {"block_length": 4}, "few steps": {"block_length": 8, "max_steps": 6},
             "empty quotas": {"block_length": 8, "max_steps": 40}, "one step": {"block_length": 16, "max_steps": 1}}
DRAWS = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "filters": {"temperature": 1.2, "top_k": 12, "top_p": 0.9},
    "guidance": {"cfg_scale": 0.7},
    "guided draws": {"cfg_scale": 0.7, "temperature": 0.8, "top_p": 0.8},
    "random": {"remasking": "random"},
    "random draws": {"remasking": "random", "temperature": 0.7},
    "entropy": {"remasking": "entropy", "temperature": 0.5},
    "margin": {"remasking": "margin"},
    "penalty": {"repetition_penalty": 1.5, "suppress_tokens": [3, 4, 58]},
    "end tokens last": {"confidence_eos_eot_inf": True, "temperature": 0.6},
    "end tokens, compat": {"confidence_eos_eot_inf": "compat", "temperature": 0.6, "remasking": "entropy"},
    "no end of text": {"logits_eos_inf": True},
}
