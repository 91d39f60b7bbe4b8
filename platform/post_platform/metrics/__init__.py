"""Official scores as functions of contingency tables; `contingency.py` is the only code that looks at pixels."""
