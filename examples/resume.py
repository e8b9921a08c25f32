"""Kill it at any moment and run it again in the same folder: no loss and no weight is another."""

from pathlib import Path

from torch import amp, manual_seed, nn, optim, randint, randn
from torch.utils.data import DataLoader, TensorDataset

import genesis

if __name__ == "__main__":  # worker processes may import this file
    manual_seed(0)
    data = TensorDataset(randn(1800, 64), randint(10, (1800,)))
    state = genesis.TrainState(epoch=0, scaler=amp.GradScaler("cpu"))
    state.loader = genesis.ResumableLoader(DataLoader(data, 64, shuffle=True, num_workers=2))
    state.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    state.optimizer = optim.AdamW(state.model.parameters(), lr=0.01)
    state.schedule = optim.lr_scheduler.LambdaLR(state.optimizer, lambda step: 0.99**step)
    if Path("run.pth").exists():
        state.load_state_dict(genesis.load("run.pth"))
    while state.epoch < 2:
        for x, y in state.loader:
            state.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(state.model(x), y)
            state.scaler.scale(loss).backward()
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.schedule.step()
            print(f"epoch {state.epoch}, batch {state.loader.batches}, loss {loss}", flush=True)
            genesis.save(state.state_dict(), "run.pth", background=True)
        state.epoch += 1
