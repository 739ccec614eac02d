"""Rows, prompts and batches: everything between a JSONL file and the tensors that the model reads.

The way of a row: `rows` (what it is) - `sources` (where it lies) - `prompting` (its ids) - `costs` and `sampler` (in
which batch it goes) - `dataset` (tensors) - `loader` and `datamodule` (workers, ranks, resume). A batch is a dict:

    audio        (A, S) float32, all clips of all rows in reading order, zeros on the right; A may be 0
    audio_lens   (A,) int64
    input_ids    (B, L) int64, zeros on the right; each audio is one position that holds `AUDIO_SLOT`
    input_lens   (B,) int64, prompt and target
    prompt_lens  (B,) int64; the ids from here to input_lens are the supervised target
    row_ids, datasets   lists of B strings; `FILLER_ID` for the stand-in of a batch without usable rows
    bad_rows     rows left out: dicts of id, dataset, where, reason, detail
    num_rows     usable rows of the batch (fillers do not count)
    position     (epoch, number of the batch in it, whether it is the last)
"""
