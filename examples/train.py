import plait
from plait import data, models, optim, train
mesh = plait.Mesh(data=2, tensor=2)                # MPI starts here; ValueError if 4 != world size
text = data.text("python-stdlib", vocabulary=4096, sequence_length=128)
layers = models.gpt(layers=4, hidden_dim=256, heads=4, vocabulary=4096, sequence_length=128)
trainer = train.Trainer(layers, text, mesh=mesh, optimizer=optim.AdamW(learning_rate=6e-4, weight_decay=0.1),
    schedule=optim.cosine(warmup_steps=20), clip=1.0, batch=16, microbatch=4, precision="bfloat16", zero=1, seed=1, run="runs/mine")
for step in trainer.steps(300):                    # resumes if runs/mine has a checkpoint
    if mesh.world.rank == 0 and step.index % 10 == 0:
        print(step.index, step.loss, step.tokens_per_second)
trainer.save()
print(trainer.evaluate(text.held_out).bits_per_byte)
