    experiment.finish()
    settings = LM_SEARCHES["finetune_asr"]
    print("To transcribe a file yourself:")
    print(
        f"  maestro transcribe {directories['finetune_asr']} {file} "
        f"--beam_size {settings.beam_size} --lm_text {lm_texts['finetune_asr']} "
        f"--lm_order {settings.lm_order} --lm_weight {settings.lm_weight}"
    )



def _write_lm_texts(pretraining: TrainRun, output: Path, data: Path) -> dict[str, Path]:
    """Writes the training texts that each fine-tuned model may write; returns files by stage."""
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.vocabulary_sampling import text_sources

    directory = output / "texts"
    directory.mkdir(exist_ok=True)
    files = {
        "finetune_asr": directory / "transcripts.txt",
        "finetune_st": directory / "english.txt",
    }
    names = [s.mixture for name, s in pretraining.streams.items() if name != "speech"]
    with data_scope(data):
        sources = text_sources(names)
        chosen = {
            "finetune_asr": [source for source in sources if source.field == "text"],
            "finetune_st": [source for source in sources if source.language == "en"],
        }
        for stage, path in files.items():
            texts = (text for source in chosen[stage] for text in source.read(source.sentences))
            path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return files


def _held_out_file(run: TrainRun, output: Path, data: Path) -> tuple[Path, str, str]:
    """Writes a test utterance as a wav file; returns path, transcript and English translation."""
    import soundfile

    from maestro_jax.data.evaluation_batches import evaluation_batches

    stream = run.streams["st"]
    batches = evaluation_batches(stream.mixture, "test", 1, stream.audio_samples, data)
    features, metadata = next(iter(batches))
    path = output / "held_out.wav"
    samples = features["audio"][0, : int(features["audio_length"][0])]
    soundfile.write(path, np.asarray(samples, np.int16), 16_000)
    return path, metadata[0]["text"], metadata[0]["translation"]
