import torch, faulthandler
faulthandler.enable()
from tests.workers.ranks import start
from tests import cases
from opd.step import step
t, r = start("fp32")
run = cases.run(cases.recipe("all"), trainer=t, dtype=torch.float32, ranks=r)
step(run, cases.rollouts(), 0, 1e-3)
torch.distributed.barrier(); torch.distributed.destroy_process_group()
