"""How good labels are: errors against a reference, and what is shown of them."""
