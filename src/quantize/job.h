/* quantize/job: a Hugging Face directory in, a quantized one out. (Being written by the lead now, with calibration.c, output.c and
 * journal.c: Q1, please finish LDLQ, Hessians, their tests and scales; do not write the job.) */
