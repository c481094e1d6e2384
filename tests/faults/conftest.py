from pathlib import Path

import pytest
from hostile_artifacts import make_artifacts
from jobs import Workshop
from long import counted


@pytest.fixture(scope="session")
def workshop(tmp_path_factory, tiny_folder, tiny_model, tiny_cross_encoder, tiny_seq2seq) -> Workshop:
    """Folders for the jobs of `jobs.JOBS`."""
    from sparse_models import masked_model, splade

    from retrodistill.encoders.multi_vector import token_encoder

    made = tmp_path_factory.mktemp("faults")
    masked = masked_model(made / "masked")
    splade(made / "bert").save_pretrained(str(made / "splade"), create_model_card=False)
    token_encoder(tiny_model).save_pretrained(str(made / "tokens"), create_model_card=False)
    models = {
        "bi-encoder": Path(tiny_model),
        "cross-encoder": Path(tiny_cross_encoder),
        "masked": masked,
        "splade": made / "splade",
        "tokens": made / "tokens",
        "seq2seq": Path(tiny_seq2seq),
    }
    return Workshop(made, tiny_folder, models)


@pytest.fixture(scope="session")
def artifacts(workshop, tiny_folder, tiny_model, tiny_cross_encoder, tiny_static, tmp_path_factory) -> Path:
    """Folder of good artifacts, one of each kind, for hostile cases."""
    folder, made = tmp_path_factory.mktemp("artifacts"), workshop.inputs
    given = (tiny_folder, tiny_model, tiny_cross_encoder, tiny_static, made / "splade", made / "tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RETRODISTILL_CACHE", str(folder / "cache"))
        make_artifacts(folder, *given)
    return folder


def pytest_terminal_summary(terminalreporter):
    """The figures, for docs/guides/reliability.md."""
    for what, number in counted.items():
        terminalreporter.write_line(f"{what}: {number}")
