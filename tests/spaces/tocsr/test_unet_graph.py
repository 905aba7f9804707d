import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.unets.unet_2d_blocks import AttnDownBlock2D

from nas.errors import InputError
from nas.spaces.tocsr.stages import stage_of
from nas.spaces.tocsr.unet import NoiseConversion, example_inputs, unet_graph


@pytest.mark.parametrize("size", [16, (13, 9)], ids=["even", "odd"])
def test_teacher_through_the_graph_equals_the_stock_forward_bit_for_bit(unet: UNet2DConditionModel, size: int | tuple[int, int]) -> None:
    inputs = example_inputs(unet, size, tokens=5, batch=2)
    with torch.no_grad():
        stock = unet(inputs["sample"], inputs["timestep"], inputs["text"]).sample
        assert torch.equal(unet_graph(unet).run(inputs), stock)


def test_graph_has_the_papers_nine_stages_and_references_the_teachers_parameters(unet: UNet2DConditionModel) -> None:
    graph = unet_graph(unet)
    assert [step.name for step in graph.steps] == ["time", "conv_in", *(f"down{i}" for i in range(4)), "mid", *(f"up{i}" for i in range(4)), "out"]
    assert {id(p) for step in graph.steps for p in step.module.parameters()} == {id(p) for p in unet.parameters()}


def test_every_skip_is_written_once_and_read_by_the_up_stage_that_consumes_it(deep: UNet2DConditionModel) -> None:
    graph = unet_graph(deep)
    assert graph["down1"].writes == ("skip1a", "skip1b", "skip1c")
    assert graph["down2"].reads == ("skip1c", "temb", "text")
    assert graph["up0"].reads == ("h", "temb", "text", "skip3b", "skip3a", "skip2c", "skip2b")
    assert graph["up3"].reads == ("h", "temb", "text", "skip0b", "skip0a", "skip")


def test_network_without_mid_block_has_no_mid_stage(shallow: UNet2DConditionModel) -> None:
    shallow.mid_block = None
    graph = unet_graph(shallow)
    assert graph["up0"].reads[0] == graph["down3"].writes[-1]
    inputs = example_inputs(shallow, 16, tokens=3)
    with torch.no_grad():
        assert torch.equal(graph.run(inputs), shallow(inputs["sample"], inputs["timestep"], inputs["text"]).sample)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_noise_conversion_recovers_the_noise_that_was_added(kind: str, scheduler: dict[str, object]) -> None:
    clean, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    timestep = torch.tensor([3, 400, 900])
    noised = DDPMScheduler.from_config(scheduler).add_noise(clean, noise, timestep)
    abar = DDPMScheduler.from_config(scheduler).alphas_cumprod[timestep].view(-1, 1, 1, 1)
    says = abar.sqrt() * noise - (1 - abar).sqrt() * clean if kind == "v_prediction" else noise - (1 - abar).sqrt() * noised
    conversion = NoiseConversion({**scheduler, "prediction_type": kind}, input_skip=kind == "epsilon")
    torch.testing.assert_close(conversion(says, noised, timestep), noise, atol=1e-5, rtol=1e-5)


def test_condition_channels_after_the_latent_take_no_part_in_the_input_skip(scheduler: dict[str, object]) -> None:
    conversion = NoiseConversion(scheduler, input_skip=False)
    net, sample, timestep = torch.randn(1, 4, 2, 2), torch.randn(1, 8, 2, 2), torch.tensor([10])
    assert torch.equal(conversion(net, sample, timestep), conversion(net, sample[:, :4], timestep))


def test_input_skip_on_top_of_a_v_prediction_is_refused(scheduler: dict[str, object]) -> None:
    with pytest.raises(InputError, match="input_skip needs prediction_type 'epsilon'"):
        NoiseConversion(scheduler, input_skip=True)


def test_scheduler_without_betas_is_refused() -> None:
    with pytest.raises(InputError, match=r"beta_start, beta_end, beta_schedule is missing \(flow matching"):
        NoiseConversion({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}, input_skip=False)


def test_scheduler_of_another_class_gives_the_betas_it_shares() -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    stable_diffusion = {**config, "_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
    expected = DDPMScheduler(**config).alphas_cumprod
    assert torch.equal(NoiseConversion(stable_diffusion, input_skip=True).alphas_cumprod, expected)


def test_prediction_of_the_clean_sample_is_refused(scheduler: dict[str, object]) -> None:
    with pytest.raises(InputError, match="prediction_type must be 'epsilon' or 'v_prediction', got 'sample'"):
        NoiseConversion({**scheduler, "prediction_type": "sample"}, input_skip=False)


def test_network_that_reads_more_than_text_is_refused(shallow: UNet2DConditionModel) -> None:
    shallow.register_to_config(addition_embed_type="text_time")
    with pytest.raises(InputError, match="'addition_embed_type' must be off, got 'text_time'"):
        unet_graph(shallow)


def test_block_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="got AttnDownBlock2D"):
        stage_of(AttnDownBlock2D(in_channels=32, out_channels=32, temb_channels=8))
