import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from vimpac_ext.engine.parallel import Replica
from vimpac_ext.registries import TASKS
from vimpac_ext.tasks.train_tokenizer import TrainTokenizerTask
from vimpac_ext.tokenizers import VQVAETokenizer


def small_task(vocab_size=16, **options):
    torch.manual_seed(0)
    tokenizer = VQVAETokenizer(weights=None, vocab_size=vocab_size, hidden_dim=16, code_dim=4)
    return TrainTokenizerTask(tokenizer, **options)


def sprite_clips(num_clips, generator, size=32, num_frames=2):
    """Squares of one colour on a ground of another, moving: float (B, 1, 3, T, H, W)."""
    colours = torch.rand(num_clips, 2, 3, 1, 1, 1, generator=generator)
    clips = colours[:, :1].expand(-1, 1, 3, num_frames, size, size).clone()
    starts = torch.randint(0, size // 2, (num_clips, 2), generator=generator)
    for clip, (top, left) in enumerate(starts.tolist()):
        for t in range(num_frames):
            square = (..., slice(top + 2 * t, top + 12 + 2 * t), slice(left, left + 12))
            clips[clip, 0, :, t][square] = colours[clip, 1, :, 0]
    return clips


def new_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_step_gives_the_documented_losses():
    assert TASKS.get("TrainTokenizerTask") is TrainTokenizerTask
    task = small_task(commitment_weight=0.5)
    clips = torch.rand(2, 2, 3, 3, 16, 24, generator=new_generator())
    losses = task.training_step({"clips": clips}, new_generator())
    assert set(losses) == {"loss", "reconstruction_loss", "commitment_loss", "perplexity"}
    assert all(value.ndim == 0 for value in losses.values())
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]
    total = losses["reconstruction_loss"] + 0.5 * losses["commitment_loss"]
    torch.testing.assert_close(losses["loss"].detach(), total)
    assert 1 <= losses["perplexity"] <= 16


def test_clips_become_frames():
    seen = []
    task = small_task()
    features = task.tokenizer.features
    task.tokenizer.features = lambda frames: (seen.append(frames), features(frames))[1]
    clips = torch.rand(2, 2, 3, 4, 16, 16)
    task.training_step({"clips": clips}, new_generator())
    frames = [clips[b, c, :, t] for b in range(2) for c in range(2) for t in range(4)]
    assert torch.equal(seen[0], torch.stack(frames))


def test_gradient_passes_straight_through():
    task = small_task()
    clips = sprite_clips(4, new_generator())
    losses = task.training_step({"clips": clips}, new_generator())
    losses["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in task.parameters())
    assert not task.tokenizer.codebook.requires_grad


def test_codebook_moves_as_in_vector_quantize_pytorch():
    """One step of an established implementation from the same codebook and averages."""
    task = small_task(ema_decay=0.8, restart_below=1e-6)
    reference = VectorQuantize(
        dim=4, codebook_size=16, decay=0.8, eps=0.0, commitment_weight=1.0, kmeans_init=False
    ).train()
    codebook = torch.randn(16, 4, generator=new_generator(5))
    counts = torch.rand(16, generator=new_generator(6)) + 0.5
    features = torch.randn(3, 5, 4, 4, generator=new_generator(7))
    task.tokenizer.codebook.copy_(codebook)
    task.code_counts.copy_(counts)
    task.code_sums.copy_(codebook * counts[:, None])
    inner = reference._codebook
    inner.embed.copy_(codebook[None])
    inner.cluster_size.copy_(counts[None])
    inner.embed_avg.copy_((codebook * counts[:, None])[None])

    codes, tokens = task._quantise(features, new_generator())
    expected_codes, expected_tokens, commitment = reference(features.flatten(1, 2))
    assert torch.equal(tokens.flatten(1), expected_tokens)
    torch.testing.assert_close(codes.flatten(1, 2), expected_codes.detach())
    torch.testing.assert_close((features - codes).square().mean(), commitment.squeeze().detach())
    torch.testing.assert_close(task.code_counts, inner.cluster_size[0])
    torch.testing.assert_close(task.tokenizer.codebook, inner.embed[0])


def test_first_step_starts_the_codebook_on_the_data():
    task = small_task()
    features = torch.randn(2, 4, 4, 4, generator=new_generator(1)) + 7
    codes, tokens = task._quantise(features, new_generator())
    vectors = {tuple(vector) for vector in features.flatten(0, 2).tolist()}
    assert {tuple(code) for code in codes.flatten(0, 2).tolist()} <= vectors
    assert tokens.unique().numel() == 16  # 32 vectors, all different, for 16 codes


def test_dead_codes_are_put_on_vectors_of_the_batch():
    task = small_task(restart_below=0.3)
    task.code_counts.fill_(4.0)
    task.code_counts[[2, 11]] = 0.5  # below 0.3 * 64 / 16
    codebook = torch.randn(16, 4) * 0.01
    task.tokenizer.codebook.copy_(codebook)
    task.code_sums.copy_(codebook * task.code_counts[:, None])
    vectors = torch.randn(64, 4) + 50
    task._restart_dead_codes(vectors, new_generator())
    moved = (task.tokenizer.codebook != codebook).any(1)
    assert moved.nonzero().flatten().tolist() == [2, 11]
    assert all((vectors == task.tokenizer.codebook[code]).all(1).any() for code in (2, 11))
    assert torch.equal(task.code_counts, torch.full((16,), 4.0))
    torch.testing.assert_close(task.code_sums, task.tokenizer.codebook * 4)


def test_fewer_vectors_than_codes():
    task = small_task(vocab_size=64)
    for _ in range(3):
        losses = task.training_step({"clips": torch.rand(1, 1, 3, 1, 16, 16)}, new_generator())
        assert losses["loss"].isfinite()
    assert task.tokenizer.codebook.isfinite().all()


def train(task, num_steps):
    generator = new_generator(3)
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)
    history = []
    for _ in range(num_steps):
        losses = task.training_step({"clips": sprite_clips(16, generator)}, generator)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    return history


def test_training_learns_and_does_not_collapse(tmp_path):
    task = small_task(vocab_size=32, commitment_weight=0.01)
    history = train(task, 200)
    last = {name: sum(step[name] for step in history[-20:]) / 20 for name in history[0]}
    assert last["reconstruction_loss"] < 0.7 * history[0]["reconstruction_loss"]
    assert last["perplexity"] > 10

    task.export(tmp_path / "trained.safetensors")
    loaded = VQVAETokenizer(str(tmp_path / "trained.safetensors"))
    assert loaded.fingerprint == task.tokenizer.fingerprint
    frames = sprite_clips(8, new_generator(9))[:, 0].transpose(1, 2).flatten(0, 1)
    error = (loaded.decode(loaded.encode(frames)) - frames).abs().mean()
    assert error < 1.3 * last["reconstruction_loss"]


def test_training_repeats_and_resumes_from_the_state():
    whole = small_task()
    expected = train(whole, 4)
    assert train(small_task(), 4) == expected
    fresh = small_task()
    fresh.load_state_dict(whole.state_dict())
    clips = sprite_clips(4, new_generator(8))
    first = whole.training_step({"clips": clips}, new_generator())
    second = fresh.training_step({"clips": clips}, new_generator())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_autocast_keeps_the_quantisation_in_float32():
    task = small_task()
    with torch.autocast("cpu", torch.bfloat16):
        losses = task.training_step({"clips": sprite_clips(4, new_generator())}, new_generator())
    assert losses["loss"].dtype == torch.float32
    losses["loss"].backward()
    assert task.tokenizer.codebook.dtype == torch.float32


def test_a_frozen_tokenizer_is_refused():
    class FixedTokenizer(nn.Module):
        def encode(self, frames):
            return frames

    with pytest.raises(ValueError, match="FixedTokenizer cannot be trained: .*codebook"):
        TrainTokenizerTask(FixedTokenizer())


@pytest.mark.parametrize("option", ["ema_decay", "restart_below"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1.5])
def test_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=f"{option} must be between 0 and 1, found {value}"):
        small_task(**{option: value})


@pytest.mark.parametrize(
    "clips", [torch.zeros(2, 1, 5, 8, 8, dtype=torch.int64), torch.zeros(2, 1, 5, 3, 8, 8)]
)
def test_token_clips_are_refused(clips):
    with pytest.raises(ValueError, match="takes pixel clips"):
        small_task().training_step({"clips": clips}, new_generator())


def trained(rank=0, world=1):
    """State and scalars after steps on this process's part of the clips."""
    task = small_task(restart_below=0.9)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    replica = Replica(task)
    scalars = []
    for step in range(4):
        clips = sprite_clips(8, new_generator(step)).unflatten(0, (world, -1))[rank]
        optimizer.zero_grad()
        losses = replica({"clips": clips}, new_generator(100 + step))
        losses["loss"].backward()
        optimizer.step()
        scalars.append({name: value.item() for name, value in losses.items()})
    return task.state_dict(), scalars


def my_training():
    return trained(dist.get_rank(), dist.get_world_size())


def test_two_processes_move_the_codebook_as_one():
    """Codes die and are restarted in all steps, on vectors of both processes."""
    state, scalars = trained()
    (first, first_scalars), (second, second_scalars) = in_processes(2, my_training)
    for name, value in state.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4, msg=name)
    for one, other, whole in zip(first_scalars, second_scalars, scalars, strict=True):
        assert one["perplexity"] == other["perplexity"]
        assert one["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-5)
        assert (one["loss"] + other["loss"]) / 2 == pytest.approx(whole["loss"], rel=1e-4)
