"""The statement about communication beside other work: `overlap`."""
