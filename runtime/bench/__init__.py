"""`edgerpn bench`: latency, throughput, power and clocks of an artifact on the machine that runs it."""
