"""Will it fit, how fast, what does it cost, how is it launched? Arithmetic on a config and a machine; no torch."""
