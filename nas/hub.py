"""A model folder on the Hugging Face hub; only ever on request."""

from pathlib import Path

from nas.errors import InputError


def check_repo(repo: str) -> None:
    """Raises unless it reads `USER/NAME`, as the hub takes it."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]  # exported, without saying so

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"cannot push to '{repo}': {str(error).splitlines()[0].rstrip('.')}; give USER/NAME") from None
    if "/" not in repo:
        raise InputError(f"cannot push to '{repo}', which names no account; give USER/NAME")


def push(folder: Path, repo: str, *, public: bool = False) -> str:
    """Uploads the folder as one commit to the repository `USER/NAME`, which is made (private, unless `public`) if it is not there; its address.

    The account is whoever `hf auth login` or `HF_TOKEN` says.

    Raises:
        InputError: no such repository name, no permission, or no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of whatever library its client uses

    check_repo(repo)
    api = HfApi()
    try:
        made = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=made.repo_id, commit_message="Add the model")
    except (HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot push to '{repo}': {reason}; log in with `hf auth login`, and give USER/NAME that you may write to") from error
    return str(made)
