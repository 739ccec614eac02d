"""Rows and batches: everything between a JSONL file and the tensors that the model reads.

The path of a row: `rows` (parsing) - `sources` (files) - `core.prompting` (token ids) - `costs` and `sampler` (which
batch) - `dataset` (tensors) - `loader` and `datamodule` (workers, ranks, resume). A batch is a dict:

    audio        (A, S) float32, all clips of all rows in reading order, zero-padded on the right; A may be 0
    audio_lens   (A,) int64
    input_ids    (B, L) int64, zero-padded on the right; each audio is one position that holds `AUDIO_SLOT`
    input_lens   (B,) int64, prompt and target
    prompt_lens  (B,) int64; the ids from here to input_lens are the supervised target
    row_ids, datasets   lists of B strings; `FILLER_ID` for the filler row of a batch without usable rows
    bad_rows     excluded rows: dicts of id, dataset, where, reason, detail
    num_rows     usable rows of the batch (fillers do not count)
    position     (epoch, number of the batch in it, whether it is the last)
"""
