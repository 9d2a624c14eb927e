/* text/template_eval: what template_eval.c (expressions) and template_run.c (statements) call of each other.
 */
#ifndef WALSH_TEXT_TEMPLATE_EVAL_H
#define WALSH_TEXT_TEMPLATE_EVAL_H

#include "text/template_internal.h"

enum walsh_status walsh_tpl_new_scope(struct walsh_tpl_run *run, struct walsh_tpl_scope *parent,
                                      struct walsh_tpl_scope **out);
/* In this scope, whatever those around it have. */
enum walsh_status walsh_tpl_define(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, uint32_t symbol,
                                   struct walsh_tpl_value v);
/* One deeper, and a step: run->depth goes back by the caller. */
enum walsh_status walsh_tpl_enter(struct walsh_tpl_run *run);
enum walsh_status walsh_tpl_eval(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope,
                                 const struct walsh_tpl_node *n, struct walsh_tpl_value *out);
/* With room for one keyword more. */
enum walsh_status walsh_tpl_eval_arguments(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope,
                                           const struct walsh_tpl_node *n, struct walsh_tpl_arguments *out);
enum walsh_status walsh_tpl_call(struct walsh_tpl_run *run, const struct walsh_tpl_node *n,
                                 const struct walsh_tpl_value *callee,
                                 const struct walsh_tpl_arguments *arguments, struct walsh_tpl_value *out);
enum walsh_status walsh_tpl_call_macro(struct walsh_tpl_run *run, const struct walsh_tpl_macro *macro,
                                       const struct walsh_tpl_arguments *arguments,
                                       struct walsh_tpl_value *out);
/* The recursive loop once more, over the argument. */
enum walsh_status walsh_tpl_call_loop(struct walsh_tpl_run *run, const struct walsh_tpl_loop *loop,
                                      const struct walsh_tpl_arguments *arguments,
                                      struct walsh_tpl_value *out);

#endif
